"""The data set and pretrained weights from their publishers: resumed, checked, safely unpacked."""
