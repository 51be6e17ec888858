"""The image tower: a ResNet (He et al. 2016; stride on the 3x3 convolution, "v1.5") cut after its third stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bmpeft.backbones.biomedgpt.configuration import RESNET_BLOCKS, BiomedGPTConfig
from bmpeft.images.processing import ImageProcessor, MeanStdName

EXPANSION = 4
NUM_CHANNELS = 256 * EXPANSION
STRIDE = 16


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a residual."""

    def __init__(self, in_channels: int, channels: int, stride: int, eps: float) -> None:
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, eps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels, eps)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + residual)


class ImageTower(nn.Module):
    """Pixels [B, 3, H, W] to features [B, 1024, ceil(H / 16), ceil(W / 16)].

    While none of its parameters is trained it stays in evaluation mode, so that the running statistics
    of its BatchNorm layers belong to the frozen backbone like its weights do.
    """

    def __init__(self, resnet_type: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks = RESNET_BLOCKS[resnet_type]
        self.layer1 = _stage(64, 64, blocks[0], stride=1, eps=eps)
        self.layer2 = _stage(64 * EXPANSION, 128, blocks[1], stride=2, eps=eps)
        self.layer3 = _stage(128 * EXPANSION, 256, blocks[2], stride=2, eps=eps)

    def train(self, mode: bool = True) -> ImageTower:
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        # Channels last, [B, H, W, 3] in memory: what the fast convolutions of a CPU and of tensor cores read, in
        # bfloat16 on a CPU more than three times as fast. Every layer keeps the layout of its input.
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(pixel_values))))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features


def default_processor(config: BiomedGPTConfig) -> ImageProcessor:
    """The preprocessing of the published fine-tuning recipes: 256 pixels for small and medium, 384 from base on."""
    side = 256 if config.d_model <= 512 else 384
    return ImageProcessor(min(side, config.image_bucket_size * STRIDE))


def make_processor(
    config: BiomedGPTConfig,
    own: ImageProcessor | None,
    *,
    image_size: int | None = None,
    image_mean_std: MeanStdName | None = None,
) -> ImageProcessor:
    """The backbone's own processor with what the recipe says instead.

    Args:
        config: of the backbone; has the default where it brings no processor.
        own: what the backbone's directory describes.
        image_size: the recipe's, or None.
        image_mean_std: the recipe's, or None.

    Raises:
        ValueError: a size that the backbone has no positions for, or that is not made of whole patches.
    """
    own = own or default_processor(config)
    processor = ImageProcessor(image_size or own.image_size, image_mean_std or own.image_mean_std)
    largest = config.image_bucket_size * STRIDE
    if processor.image_size % STRIDE or not STRIDE <= processor.image_size <= largest:
        raise ValueError(f"image_size {processor.image_size}: expected a multiple of {STRIDE} up to {largest}")
    return processor


def _stage(in_channels: int, channels: int, blocks: int, stride: int, eps: float) -> nn.Sequential:
    first = Bottleneck(in_channels, channels, stride, eps)
    return nn.Sequential(first, *(Bottleneck(channels * EXPANSION, channels, 1, eps) for _ in range(blocks - 1)))
