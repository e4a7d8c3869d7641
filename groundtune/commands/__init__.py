"""The commands of `groundtune`, one file each, with its flags and output. Other packages do the work."""
