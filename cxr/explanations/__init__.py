"""Where a network looked: heatmaps of images, and the job that explains a list of them."""
