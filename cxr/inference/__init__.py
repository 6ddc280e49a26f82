"""Running a network over images: the device, the engine, and the actor that holds a model."""
