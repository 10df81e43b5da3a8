"""What goes with a file to other people: a description, a model card, an Ollama Modelfile."""
