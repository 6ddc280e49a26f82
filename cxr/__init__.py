"""Learn to tell normal chest radiographs from pneumonia, and score archives of them, on Ray."""
