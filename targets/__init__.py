"""The policy on hardware: one file an instruction set, one TOML file a device."""
