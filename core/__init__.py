"""What every package shares: commands and files, devices, the machine. Imports none of the others."""
