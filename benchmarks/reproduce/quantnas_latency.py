"""What full quantization gains on this machine (QuantNAS, Fig. 1 and Sec. 1: -50.3% on a Kirin 9000).

    python benchmarks/reproduce/quantnas_latency.py [--device onnxruntime] [--rounds 40] [--quick]

MobileNetV2 and others at their published sizes, 224 pixels, one image, one thread: in float, with convolutions alone
quantized (batch normalisation, sums, pooling and classifier in float), and fully quantized at 8 bits. All are timed
round-robin beside the float net, so that what slows the machine down cancels. Weights are random: they change no
latency.
``--quick`` takes small images and few rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from shared import table

from qnas import components
from qnas.config import load_config
from qnas.deploy.onnx_export import build_model
from qnas.environment import processor
from qnas.files import write_bytes, write_json, write_text
from qnas.latency.nets import LatencyNets, random_images
from qnas.latency.timing import TimingSettings, time_models, time_reference
from qnas.plugins import load_registry

NETS = {
    "MobileNetV2": {"name": "mbv2", "options": {"elastic": False}},
    "MobileNetV3, ReLU, no squeeze-excite": {
        "name": "mbv3",
        "options": {"se": False, "act": "relu", "kernels": 3, "expansions": 6, "depths": 4, "resolutions": 224},
    },
    "ResNet-18": {"name": "resnet18", "options": {"elastic": False}},
}
FORMS = ("float", "conv-only", "full")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--quick", action="store_true", help="MobileNetV2 alone, 32 pixels, 3 rounds: does it run?")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="with --quick: folder of the results")
    parser.add_argument("--out", type=Path, help="JSON, with a table beside it; benchmarks/results/, or WORK if quick")
    args = parser.parse_args()
    results = args.work if args.quick else Path(__file__).parents[1] / "results"
    args.out = args.out or results / "quantnas_latency.json"
    args.rounds = 3 if args.quick else args.rounds
    return args


def model(space: dict[str, Any], form: str, size: int, folder: Path) -> Path:
    """Write one net in one form, and return its file."""
    registry = load_registry()
    config = load_config(
        {
            "space": space,
            "quantization": {
                "w_bits": [8],
                "a_bits": [8],
                "quantize": "conv-only" if form == "conv-only" else "full",
                "folding": "none" if form == "conv-only" else "batch",
            },
        }
    )
    data = random_images(size, 1000, 3)
    nets = LatencyNets(registry, config, components.build_space(registry, config, data), data)
    if form == "float":
        nets.supernet.set_mode("float")
    path = folder / f"{form}.onnx"
    subnet = nets.supernet.extract(nets.space.highest()).fold()
    write_bytes(path, build_model(subnet, {}).model.SerializeToString())
    return path


def main() -> None:
    args = parse()
    device = load_registry().load("device", args.device)()
    timing = TimingSettings(args.threads, args.batch, args.rounds)
    size = 32 if args.quick else 224
    names = ["MobileNetV2"] if args.quick else list(NETS)
    value: dict[str, Any] = {
        "device": args.device,
        "version": device.version,
        "machine": processor(),
        "pixels": size,
        **timing.to_json(),
        "nets": {},
    }
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(model(NETS[name], form, size, Path(folder))) for form in FORMS]
            baseline = time_reference(device, paths[0], timing)
            found = [baseline, *time_models(device, paths[0], paths[1:], timing, baseline)]
            operators = [device.operators(path) for path in paths]
        value["nets"][name] = {
            form: {**latency.to_json(), "against_float": latency.ms / baseline.ms - 1, "operators": own}
            for form, latency, own in zip(FORMS, found, operators, strict=True)
        }
        cells = [f"{x.ms:.2f} [{x.low:.2f}, {x.high:.2f}]" for x in found]
        rows.append([name, *cells, *(f"{100 * (x.ms / baseline.ms - 1):+.1f}%" for x in found[1:])])
        write_json(args.out, value)
    header = ["net", "float, ms", "convolutions alone, ms", "fully quantized, ms", "conv-only against float", "full"]
    text = table(header, rows) + "\n"
    write_text(args.out.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
