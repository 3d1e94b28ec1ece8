"""Hosts: how the parts live inside another program. Only `comfy*.py` here may import ComfyUI."""
