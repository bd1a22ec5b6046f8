"""The multi-layer perceptron that predicts accuracy from one-hot samples.

Xu et al., "MultiQuant: Training Once for Multi-Bit Quantization of Neural Networks", IJCAI 2022, Sec. 3.3: seven
layers, 150 wide, after Once-for-All (Cai et al., ICLR 2020) and APQ (Wang et al., CVPR 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qnas.errors import ConfigError

Array = np.ndarray[Any, Any]
BATCH = 1024  # predictions at once: what passes between two layers stays in the processor's cache


class MLP:
    """Linear layers with ReLU between them; the targets are standardised, the loss is the mean squared error.

    Args:
        seed: of the weights and of the order of the samples.
        layers: linear layers, the last one included.
        width: of all but the last.
        epochs: passes over the samples.
        lr: peak learning rate of Adam's cosine schedule.
        batch_size: samples a step.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        layers: int = 7,
        width: int = 150,
        epochs: int = 200,
        lr: float = 1e-3,
        batch_size: int = 64,
        weight_decay: float = 1e-2,
    ) -> None:
        numbers = {"layers": layers, "width": width, "epochs": epochs, "batch_size": batch_size, "lr": lr}
        wrong = [f"{name}={value}" for name, value in numbers.items() if value <= 0]
        if wrong or weight_decay < 0:
            raise ConfigError(
                "Predictor mlp: layers, width, epochs, batch_size and lr must be over 0, weight_decay at least 0; "
                f"given: {', '.join(wrong) or f'weight_decay={weight_decay}'}. Correct [predictor.options]."
            )
        self.seed = seed
        self.layers = layers
        self.width = width
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self._network: nn.Sequential | None = None
        self._mean = self._scale = 0.0

    def fit(self, encoded: Array, targets: Array) -> None:
        """Learn from ``[n, d]`` encodings and ``[n]`` targets."""
        x, y = torch.from_numpy(np.asarray(encoded, np.float32)), torch.from_numpy(np.asarray(targets, np.float64))
        self._mean = float(y.mean())
        self._scale = float(y.std(correction=0)) or 1.0
        wanted = ((y - self._mean) / self._scale).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._network = self._build(x.shape[1])
            self._train(self._network, x, wanted)

    def _build(self, features: int) -> nn.Sequential:
        widths = [features, *[self.width] * (self.layers - 1), 1]
        parts: list[nn.Module] = []
        for i in range(self.layers):
            parts += [nn.Linear(widths[i], widths[i + 1]), *([nn.ReLU()] if i < self.layers - 1 else [])]
        return nn.Sequential(*parts)

    def _train(self, network: nn.Sequential, x: torch.Tensor, wanted: torch.Tensor) -> None:
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)
        steps = self.epochs * math.ceil(len(x) / self.batch_size)
        step = 0
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x)).split(self.batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad(set_to_none=True)
                F.mse_loss(network(x[rows])[:, 0], wanted[rows]).backward()
                optimizer.step()
                step += 1

    @torch.inference_mode()
    def predict(self, encoded: Array) -> Array:
        """Return ``[n]`` predictions, float64, of ``[n, d]`` encodings."""
        assert self._network is not None, "fit or load_state_dict comes first"
        x = torch.from_numpy(np.ascontiguousarray(encoded, np.float32))
        parts = [self._network(part)[:, 0] for part in x.split(BATCH)]
        outputs = torch.cat(parts) if parts else torch.empty(0)
        return outputs.double().numpy() * self._scale + self._mean

    def state_dict(self) -> dict[str, Array]:
        """Return the weights and how targets are standardised."""
        assert self._network is not None, "fit comes first"
        weights = {name: tensor.numpy() for name, tensor in self._network.state_dict().items()}
        return {**weights, "targets": np.array([self._mean, self._scale], np.float64)}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take up a state."""
        weights = {name: torch.from_numpy(np.array(value)) for name, value in state.items() if name != "targets"}
        self._network = self._build(weights["0.weight"].shape[1])
        self._network.load_state_dict(weights)
        self._mean, self._scale = (float(value) for value in state["targets"])
