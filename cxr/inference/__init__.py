"""Running a network over images: devices, and the actor that holds a model."""
