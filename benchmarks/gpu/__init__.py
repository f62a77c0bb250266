"""The sections of `make gpu-check`. Each module has `units(settings)`: names and what to run, in order, under each."""
