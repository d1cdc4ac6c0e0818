"""Small reference networks that load Hugging Face safetensors."""
