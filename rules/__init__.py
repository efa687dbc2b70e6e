"""The rules, and as plain Python what each of them needs."""
