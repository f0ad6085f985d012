"""Adapters: PEFT folders read and checked, host tier, slots of the device, who may use which."""
