"""The policy on hardware: a file for each instruction set, a TOML file for each device."""
