"""The commands of `groundtune`, a file each: its flags and what it prints. The work is done by the modules above."""
