"""The engine for GPUs, and for CPUs that multiply in bfloat16: a network run by PyTorch."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cxr.inference import devices
from cxr.inference.engine import batch_size
from cxr.models import transforms
from cxr.models.classifier import OUTPUTS, Classifier
from cxr.models.ensemble import Ensemble
from cxr.models.unusual import FeatureOutput
from cxr.recipes import Normalization


def forward(network: nn.Module, pixels: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """Normalize a batch and run a network over it; used by training and inference alike.

    Args:
        network: takes images, float32 (N, 3, H, W), channels last.
        pixels: gray levels 0-255, uint8 or float32, (N, 1, H, W), on the network's device.
        normalization: as in `transforms.normalize`.

    Returns:
        The network's outputs, (N, ...).
    """
    images = transforms.normalize(pixels, normalization)
    outputs: torch.Tensor = network(images.contiguous(memory_format=torch.channels_last))
    return outputs


class WithFeatures(nn.Module):
    """A classifier or ensemble whose outputs are logits and features side by side, (N, 2 + D)."""

    model: Classifier | Ensemble

    def __init__(self, model: Classifier | Ensemble, appended: FeatureOutput) -> None:
        super().__init__()
        self.model = model
        self.number = OUTPUTS.index(appended)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The first of what the model's `score` returns, and the one that is appended."""
        scores = self.model.score(images)
        return torch.cat([scores[0].float(), scores[self.number].float()], dim=1)


class TorchEngine:
    """Runs a whole network, or the frozen part of one, over any number of images in batches."""

    def __init__(self, network: nn.Module, normalization: Normalization, *, gpu: bool) -> None:
        """Move the network to the device.

        Args:
            network: a classifier, or its `prefix`; changed in place.
            normalization: of the pixels.
            gpu: compute on the GPU that Ray assigned to this process.
        """
        self.device = devices.device(gpu)
        self.batch_size = batch_size(gpu)
        self.network = devices.for_inference(network, self.device)
        self.normalization = normalization

    def run(
        self, pixels: NDArray[np.uint8], on_batch: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """As `Engine.run`."""
        outputs = []
        for start in range(0, len(pixels), self.batch_size):
            batch = torch.from_numpy(pixels[start : start + self.batch_size].copy())[:, None]
            with torch.inference_mode(), devices.autocast(self.device):
                part = forward(self.network, batch.to(self.device), self.normalization)
            outputs.append(part.float().contiguous().cpu().numpy())
            on_batch(len(batch))
        return np.concatenate(outputs)
