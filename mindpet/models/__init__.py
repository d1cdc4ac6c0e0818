"""Reference networks that load Hugging Face safetensors and give the numbers of transformers."""
