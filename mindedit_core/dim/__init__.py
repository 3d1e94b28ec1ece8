"""Files of Draw-In-Mind (arXiv 2509.01986): as published and as ours, their keys and what they hold."""
