"""Registers the built-in plugins, as a third party would."""

from __future__ import annotations

from collections.abc import Iterable

from qnas.hookspecs import ComponentSpec, hookimpl


@hookimpl
def qnas_components() -> Iterable[ComponentSpec]:
    """Yield everything in this package."""
    yield ComponentSpec(
        "quantizer", "lsq", "qnas_plugins.quantizers.lsq:LSQ", "Learned step size (Esser et al. 2020), 2 to 8 bits"
    )
    yield ComponentSpec(
        "quantizer", "minmax", "qnas_plugins.quantizers.minmax:MinMax", "The range that was seen (Jacob et al. 2018)"
    )
    yield ComponentSpec(
        "quantizer",
        "multiquant",
        "qnas_plugins.quantizers.multiquant:MultiQuant",
        "Learned step, zero points for weights too, 2 to 8 bits (MultiQuant)",
    )
    yield ComponentSpec(
        "quantizer",
        "dorefa",
        "qnas_plugins.quantizers.dorefa:DoReFa",
        "DoReFa as Any-Precision has it (Zhou et al. 2016, Yu et al. 2021)",
    )
    yield ComponentSpec(
        "quantizer",
        "robustquant",
        "qnas_plugins.quantizers.robustquant:RobustQuant",
        "Weights drawn to a uniform distribution by their kurtosis (Shkolnik et al. 2020)",
    )
    yield ComponentSpec(
        "quantizer",
        "batchquant",
        "qnas_plugins.quantizers.batchquant:BatchQuant",
        "Activations in the range of their batch, scaled and shifted (BatchQuant)",
    )
    yield ComponentSpec(
        "quantizer",
        "pact",
        "qnas_plugins.quantizers.pact:PACT",
        "Activations with a learned clip value and its L2 decay (Choi et al. 2018)",
    )
    yield ComponentSpec(
        "quantizer",
        "basq",
        "qnas_plugins.quantizers.basq:BASQ",
        "Branches of clip values with different L2 decays, searched (BASQ)",
    )
    yield ComponentSpec(
        "quantizer",
        "lsq+",
        "qnas_plugins.quantizers.lsq_plus:LSQPlus",
        "Learned step, and offset of activations that can be negative (Bhalgat et al. 2020)",
    )
    yield ComponentSpec(
        "quantizer",
        "scale-predictor",
        "qnas_plugins.quantizers.scale_predictor:ScalePredictor",
        "Folded weights' scale, predicted from each subnet's statistics (QuantNAS)",
    )
    yield ComponentSpec(
        "sampler",
        "sandwich",
        "qnas_plugins.samplers.sandwich:Sandwich",
        "Largest, random ones, smallest (Yu and Huang 2019), as OFA, OQAT and QuantNAS train",
    )
    yield ComponentSpec(
        "sampler", "uniform", "qnas_plugins.samplers.uniform:Uniform", "Independent uniform subnets (Guo et al. 2020)"
    )
    yield ComponentSpec(
        "sampler",
        "lrh",
        "qnas_plugins.samplers.lrh:LowestRandomHighest",
        "Lowest, random and highest bit-widths (MultiQuant)",
    )
    yield ComponentSpec(
        "sampler",
        "every-bits",
        "qnas_plugins.samplers.every_bits:EveryBits",
        "One bit-width in all layers, each in turn (Any-Precision)",
    )
    yield ComponentSpec(
        "sampler",
        "monte-carlo",
        "qnas_plugins.samplers.monte_carlo:MonteCarloSampler",
        "Wanted average bit-widths, by default all of them evenly (MultiQuant)",
    )
    yield ComponentSpec(
        "supervision",
        "teacher",
        "qnas_plugins.supervisions.teacher:TeacherLabel",
        "A trained net's softmax, of another run or a file of weights (BASQ, ReActNet)",
    )
    yield ComponentSpec(
        "supervision",
        "recursive-distillation",
        "qnas_plugins.supervisions.recursive:RecursiveDistillation",
        "The first subnet learns the labels, each other from the one before (Any-Precision)",
    )
    yield ComponentSpec(
        "supervision",
        "adaptive-label",
        "qnas_plugins.supervisions.adaptive:AdaptiveLabel",
        "Labels that the subnets of the epoch before gave each class (MultiQuant)",
    )
    yield ComponentSpec(
        "supervision",
        "label-smoothing",
        "qnas_plugins.supervisions.smoothing:LabelSmoothing",
        "Every subnet learns smoothed labels",
    )
    yield ComponentSpec(
        "supervision",
        "inplace-distillation",
        "qnas_plugins.supervisions.inplace:InplaceDistillation",
        "The largest subnet learns the labels, the others learn from it",
    )
    yield ComponentSpec(
        "supervision", "hard", "qnas_plugins.supervisions.hard:HardLabel", "Every subnet learns the labels"
    )
    yield ComponentSpec(
        "calibrator",
        "bn",
        "qnas_plugins.calibrators.bn:BatchNormCalibrator",
        "Batch normalisation statistics of each subnet from training images",
    )
    yield ComponentSpec(
        "calibrator",
        "scale-predictor",
        "qnas_plugins.calibrators.scales:ScalePredictorCalibrator",
        "Weight scales predicted from each subnet's statistics (QuantNAS)",
    )
    yield ComponentSpec(
        "calibrator",
        "scale-refit",
        "qnas_plugins.calibrators.scales:ScaleRefitCalibrator",
        "Weight scales fitted to each subnet's folded weights",
    )
    for name, attribute, summary in (
        ("minmax", "MinMaxRange", "Ranges from the smallest to the largest value"),
        ("percentile", "PercentileRange", "Ranges without the outermost values"),
        ("mse", "MseRange", "Ranges of the smallest mean squared error"),
        ("entropy", "EntropyRange", "Ranges of the least divergence (TensorRT)"),
    ):
        yield ComponentSpec("calibrator", name, f"qnas_plugins.calibrators.ranges:{attribute}", summary)
    yield ComponentSpec(
        "calibrator",
        "lapq",
        "qnas_plugins.calibrators.lapq:LossAwareRange",
        "Ranges of the smallest loss: layer by layer, then together (Nahshan et al. 2021)",
    )
    yield ComponentSpec(
        "predictor",
        "mlp",
        "qnas_plugins.predictors.mlp:MLP",
        "Seven layers, 150 wide, from one-hot samples (MultiQuant)",
    )
    yield ComponentSpec("cost", "macs", "qnas_plugins.costs.macs:MACS", "Multiply-accumulate operations an image")
    yield ComponentSpec(
        "cost", "bitops", "qnas_plugins.costs.bitops:BITOPS", "Sum of MACs * weight bits * activation bits"
    )
    yield ComponentSpec(
        "cost",
        "oqat_flops",
        "qnas_plugins.costs.oqat:OQAT_FLOPS",
        "BitOPs / 64, and MACs of float layers: what OQAT's code prints as FLOPs",
    )
    yield ComponentSpec("cost", "size_bytes", "qnas_plugins.costs.size:SIZE_BYTES", "Bytes of the bit-packed model")
    for role, what in (("w_bits", "weights"), ("a_bits", "activations")):
        for weighting in ("", "_parameters", "_macs", "_features"):
            target = f"qnas_plugins.costs.averages:{role.upper()}{weighting.upper()}"
            by = weighting[1:] or "layers"
            yield ComponentSpec("cost", f"avg_{role}{weighting}", target, f"Average bit-width of {what} by {by}")
    yield ComponentSpec(
        "dataset",
        "digits",
        "qnas_plugins.datasets.digits:Digits",
        "1,797 handwritten digits, 8x8, embedded in scikit-learn (the default)",
    )
    yield ComponentSpec(
        "dataset",
        "files",
        "qnas_plugins.datasets.files:Files",
        "Your images: Hugging Face parquet, folders of classes, CIFAR batches (--data PATH)",
    )
    yield ComponentSpec(
        "dataset",
        "scenes",
        "qnas_plugins.datasets.scenes:Scenes",
        "Another data set's images as objects on a canvas, for detection",
    )
    yield ComponentSpec(
        "task",
        "detection",
        "qnas_plugins.tasks.detection:Detection",
        "RetinaNet's head and loss on a backbone, COCO's average precision (Lin et al. 2017)",
    )
    yield ComponentSpec(
        "task", "classification", "qnas_plugins.tasks.classification:Classification", "Cross-entropy and accuracy"
    )
    yield ComponentSpec(
        "device",
        "onnxruntime",
        "qnas_plugins.devices.onnxruntime:OnnxRuntime",
        "ONNX Runtime on the CPU (embedded default)",
    )
    yield ComponentSpec(
        "device", "openvino", "qnas_plugins.devices.openvino:OpenVino", "OpenVINO on the CPU (extra openvino)"
    )
    yield ComponentSpec(
        "recipe",
        "ofa-evolution",
        "qnas_plugins.recipes:OFA_EVOLUTION",
        "Evolution with the numbers of OFA and OQAT: population 100, 500 iterations",
    )
    yield ComponentSpec(
        "recipe",
        "oqat",
        "qnas_plugins.recipes:OQAT",
        "OQAT: one supernet at 4 bits, inherited to 3 and to 2, searched at each",
    )
    yield ComponentSpec(
        "recipe",
        "nas-then-quantize",
        "qnas_plugins.recipes:NAS_THEN_QUANTIZE",
        "What OQAT is compared with: a float search, then its net trained at 4, 3 and 2 bits",
    )
    yield ComponentSpec(
        "recipe",
        "search-then-retrain",
        "qnas_plugins.recipes:SEARCH_THEN_RETRAIN",
        "What OQAT is compared with: a quantized search, then its net trained alone",
    )
    yield ComponentSpec(
        "recipe",
        "multiquant",
        "qnas_plugins.recipes:MULTIQUANT",
        "MultiQuant: one supernet at 2 to 8 bits in every layer, mixed precision by a predictor",
    )
    yield ComponentSpec(
        "recipe",
        "anyprecision",
        "qnas_plugins.recipes:ANYPRECISION",
        "What MultiQuant is compared with: Any-Precision, one bit-width in all layers",
    )
    yield ComponentSpec(
        "recipe",
        "robustquant",
        "qnas_plugins.recipes:ROBUSTQUANT",
        "What MultiQuant is compared with: weights of uniform distribution, ranges set afterwards",
    )
    yield ComponentSpec(
        "recipe",
        "quantnas",
        "qnas_plugins.recipes:QUANTNAS",
        "QuantNAS: fully quantized at 8 bits, scales predicted for each subnet, latency measured",
    )
    yield ComponentSpec(
        "recipe",
        "batchquant",
        "qnas_plugins.recipes:BATCHQUANT",
        "What QuantNAS is compared with: activations in the range of their batch, mixed precision",
    )
    yield ComponentSpec(
        "recipe",
        "basq",
        "qnas_plugins.recipes:BASQ",
        "BASQ: 2 bits, the decay of each clip value searched, in blocks made for few bits",
    )
    yield ComponentSpec(
        "recipe",
        "ptq",
        "qnas_plugins.recipes:PTQ",
        "Post-training quantization: a float net, quantized without training",
    )
