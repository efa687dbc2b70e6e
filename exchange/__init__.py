"""Other programs' feature files -> stores, and stores -> the field's `.npy` and `.txt` files."""
