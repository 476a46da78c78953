"""Model folders: find, check, identify, read and write them. Only safetensors is read; nothing is unpickled."""
