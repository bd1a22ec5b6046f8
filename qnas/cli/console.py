"""What a user sees in the terminal: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

TRIALS_A_LINE = 10  # when piped
SAMPLES_A_LINE = 50
COST_COLUMNS = 4  # of a front's table; more only where objectives and constraints name more


def stdout_console() -> Console:
    """Return a console for results; wide enough for tables when piped."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def make_recorder(quiet: bool) -> ProgressRecorder | LineRecorder | None:
    """Return what shows progress: bars on a terminal, lines when piped, nothing when quiet."""
    if quiet:
        return None
    return ProgressRecorder() if sys.stderr.isatty() else LineRecorder()


class LineRecorder:
    """One line an epoch and for every few trials, for logs."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._total = 0

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        """Print the events that a log wants."""
        text = None
        if event == "init":
            text = f"init: {values['summary']}"
        elif event == "stage":
            length = (
                f"{values['epochs']} epochs of {values['steps']} steps" if values["epochs"] else "sets ranges alone"
            )
            text = f"train: stage {values['name']}, {length}"
        elif event == "epoch":
            text = f"train: {values['stage']} epoch {values['epoch'] + 1}, {losses(values['losses'])}"
        elif event == "search":
            self._total = values["evaluations"]
            text = f"search: {values['name']}, {self._total} evaluations"
        elif event == "trial" and (values["number"] % TRIALS_A_LINE == 0 or values["number"] == self._total):
            text = f"search: {values['number']}/{self._total}"
        elif event == "samples":
            self._total = values["of"]
            text = f"predictor: stage {values['stage']}, {self._total} subnets to judge"
        elif event == "sample" and (values["number"] % SAMPLES_A_LINE == 0 or values["number"] == self._total):
            text = f"predictor: {values['number']}/{self._total}"
        elif event == "predicting":
            text = f"search: {values['name']}, {values['evaluations']} predictions"
        elif event == "insights":
            text = f"insights: stage {values['stage']}, {values['total']} subnets"
        elif event == "measuring":
            text = f"latency: {values['name']}, {values['total']} nets to measure"
        elif event == "fold":
            text = f"kfold: {values['name']}, fold {values['fold']}/{values['folds']}"
        elif event == "alone":
            text = f"alone: {values['number']}/{values['total']}, {', '.join(values['keys'])}"
        elif event == "phase" and values["state"] == "end":
            text = f"{values['name']}: done in {values['seconds']:.1f} s"
        if text is not None:
            click.echo(f"[{time.monotonic() - self._start:6.1f} s] {text}", err=True)


class ProgressRecorder:
    """Bars with rate and time left."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._prefix = ""

    def _begin(self, description: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        if self._progress is None:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._progress.start()
        self._task = self._progress.add_task(description, total=total, rate="", note="")

    def _advance(self, note: str, unit: str, steps: int = 1) -> None:
        if self._progress is None or self._task is None:
            return
        task = next(t for t in self._progress.tasks if t.id == self._task)
        rate = f"{task.speed:.1f} {unit}/s" if task.speed else ""
        self._progress.update(self._task, advance=steps, rate=rate, note=note)

    def close(self) -> None:
        """Leave the finished bars on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        """Move the bar that the event belongs to."""
        if event == "init":
            click.echo(f"init: {values['summary']}", err=True)
        elif event == "stage":
            self._begin(f"{self._prefix}train {values['name']}", values["epochs"] * values["steps"])
        elif event == "step":
            self._advance(losses(values["losses"]), "steps")
        elif event == "search":
            self._begin(f"search {values['name']}", values["evaluations"])
        elif event == "trial":
            best = values["metrics"]
            self._advance(f"{values['key'][:8]} {next(iter(best))} {next(iter(best.values())):.3f}", "subnets")
        elif event == "samples":
            self._begin(f"judge {values['stage']}", values["of"])
        elif event == "sample":
            self._advance("", "subnets")
        elif event == "predicting":
            self._begin(f"predict {values['name']}", values["evaluations"])
        elif event == "predicted":
            self._advance("", "subnets", values["new"])
        elif event == "insights":
            self._begin(f"judge {values['stage']}", values["total"])
        elif event == "insight":
            self._advance("", "subnets", values["new"])
        elif event == "measuring":
            self._begin(f"latency of {values['name']}", values["total"])
        elif event == "measured":
            self._advance("", "nets", values["new"])
        elif event == "fold":
            self._begin(f"fold {values['fold']}/{values['folds']}", values["evaluations"])
        elif event == "fold_trial":
            self._advance("", "subnets", values["new"])
        elif event == "alone":
            self._prefix = f"{values['number']}/{values['total']} "
        elif event == "phase" and values["state"] != "start":
            self.close()


def losses(losses: list[float]) -> str:
    """Return the losses of a step's subnets in words; the sandwich puts the largest first and the smallest last."""
    if len(losses) == 1:
        return f"loss {losses[0]:.3f}"
    return f"loss {losses[0]:.3f} largest, {losses[-1]:.3f} smallest"


def scored(score: float, error: float | None) -> str:
    """Return a score in percent with its standard error, where there is one."""
    return f"{score:.2%}" if error is None else f"{score:.2%} ± {error:.2%}"


def print_json(value: Any) -> None:
    """Print a result for programs."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def print_front(front: Mapping[str, Any]) -> None:
    """Print the front as a table."""
    from rich.table import Table

    from qnas.constraints import plain_number
    from qnas.latency.said import sentences

    metric = front["metric"]
    known = sorted(front["points"][0]["metrics"]) if front["points"] else []
    limited = [name for name in known if any(re.match(rf"{name}\W", text) for text in front["constraints"])]
    asked = dict.fromkeys([*(str(objective["name"]) for objective in front["objectives"]), *limited])
    costs = [name for name in dict.fromkeys([*asked, *known]) if name in known and name != metric]
    costs = costs[: max(COST_COLUMNS, len(asked.keys() - {metric}))]
    images = front["num_images"]
    table = Table(
        title=f"Front of {front['evaluations']} subnets ({front['search']}, stage {front['stage']})",
        title_justify="left",
    )
    table.add_column("subnet")
    table.add_column(f"{metric}, search ({images['search']})", justify="right")
    table.add_column(f"{metric}, test ({images['test']})", justify="right")
    for name in costs:
        table.add_column(name, justify="right")
    table.add_column("")
    for point in front["points"]:
        test = point["test"]
        chosen = point["key"] == front["chosen"]
        table.add_row(
            point["key"],
            scored(point["metrics"][metric], point["standard_error"]),
            scored(test[metric], test["standard_error"]),
            *(plain_number(point["metrics"][name]) for name in costs),
            "chosen" if chosen else "",
            style="bold" if chosen else None,
        )
    stdout_console().print(table)
    if "predictor" in front:
        used = front["predictor"]
        click.echo(
            f"Searched on {used['evaluations']:,} predictions of {used['name']} (held-out Kendall tau "
            f"{used['score']['kendall_tau']['value']:.3f}); the table is measured"
        )
    for sentence in sentences(front):
        click.echo(sentence)
    volume = front["hypervolume"]
    reference = ", ".join(f"{name} {value:g}" for name, value in volume["reference"].items())
    click.echo(
        f"Hypervolume {volume['search']:.4f} (search), {volume['test']:.4f} (test); reference point: {reference}"
    )
    if "kfold" in front:
        from qnas import kfold_said

        for sentence in kfold_said.sentences(front["kfold"]):
            click.echo(sentence)


def print_latency_table(value: Mapping[str, Any]) -> None:
    """Print what a table of latencies holds, and how its check came out."""
    from rich.table import Table

    from qnas.latency.said import device_said
    from qnas.latency.table import MAX_ERROR, MIN_SPEARMAN

    header, check, fit, blocks = value["header"], value["check"], value["fit"], value["blocks"]
    table = Table(title=f"Latency of the blocks of {header['space']['name']}, {device_said(header)}")
    table.title_justify = "left"
    table.add_column("block")
    for name in ("shapes", "fastest ms", "slowest ms"):
        table.add_column(name, justify="right")
    for block, keys in blocks.items():
        found = [fit["slope"] * value["models"][model]["ms"] if model else 0.0 for model in keys.values()]
        table.add_row(block, str(len(keys)), f"{min(found):.4f}", f"{max(found):.4f}")
    stdout_console().print(table)
    shapes, models = sum(map(len, blocks.values())), len(value["models"]) - 1  # less the one that computes nothing
    click.echo(f"{shapes} blocks, {models} of them different; largest subnet {value['reference']['ms']:.4f} ms")
    click.echo(f"Whole nets: {fit['intercept_ms']:.4f} ms + {fit['slope']:.4f} x sum of their blocks, as calibrated")
    order = "no order to compare" if check["spearman"] is None else f"Spearman {check['spearman']:.4f}"
    seen = "unseen subnets" if check["unseen"] else "subnets, measured once more (the space has no others)"
    click.echo(
        f"Check {'passed' if check['passed'] else 'FAILED'} on {check['subnets']} {seen}: {order} (at least "
        f"{MIN_SPEARMAN}), mean relative error {check['mean_relative_error']:.2%} (at most {MAX_ERROR:.0%}), largest "
        f"{check['largest_relative_error']:.2%}"
    )


def print_retrained(nets: Sequence[Mapping[str, Any]]) -> None:
    """Print the nets that were trained again after the search."""
    from rich.table import Table

    from qnas.retrained import bits_said

    metric, images = nets[0]["metric"], nets[0]["num_images"]
    table = Table(title="Searched points, trained again by themselves", title_justify="left")
    for name in ("subnet", "point of", "start", "bits"):
        table.add_column(name)
    for name in (f"{metric}, search ({images['search']})", f"{metric}, test ({images['test']})", "bitops", "passes"):
        table.add_column(name, justify="right")
    for net in nets:
        errors = net["standard_error"]
        table.add_row(
            net["key"],
            net["search"],
            net["start"],
            bits_said(net["sample"]),
            *(scored(net["metrics"][s][metric], errors[s]) for s in ("search", "test")),
            f"{int(net['metrics']['test']['bitops']):,}",
            f"{net['image_passes']:,.0f}",
        )
    stdout_console().print(table)
    _print_changes([net for net in nets if net.get("before")])
    passes = sum(net["image_passes"] for net in nets)
    click.echo(f"Passes: images through the run's largest subnet, smaller ones by their MACs; {passes:,.0f} in all")


def _print_changes(nets: Sequence[Mapping[str, Any]]) -> None:
    """Print the test scores of searched points with the supernet's weights and trained again; nothing without any."""
    from rich.table import Table

    if not nets:
        return
    metric = nets[0]["metric"]
    table = Table(title=f"{metric}, test split: chosen without it, only reported", title_justify="left")
    for name in ("subnet", "trained through"):
        table.add_column(name)
    for name in ("as searched", "trained again", "difference (95% interval)"):
        table.add_column(name, justify="right")
    for net in nets:
        before, change = net["before"], net["before"]["difference"]
        interval = f" ({change['low']:+.2%} to {change['high']:+.2%})" if "low" in change else ""
        table.add_row(
            net["key"],
            ", ".join(stage["name"] for stage in net["stages"]),
            scored(before["metrics"]["test"], before["standard_error"]["test"]),
            scored(net["metrics"]["test"][metric], net["standard_error"]["test"]),
            f"{change['value']:+.2%}{interval}",
        )
    stdout_console().print(table)


def print_rank(result: Mapping[str, Any]) -> None:
    """Print how the supernet's ranking agrees with training alone."""
    from rich.table import Table

    tau, metric = result["tau"], result["metric"]
    images = result["num_images"]
    table = Table(title=f"{result['num_configs']} random subnets, best alone first", title_justify="left")
    table.add_column("subnet")
    table.add_column(f"{metric}, supernet ({images['supernet']})", justify="right")
    table.add_column(f"{metric}, alone ({images['alone']})", justify="right")
    for entry in sorted(result["configs"], key=lambda entry: (-entry["alone"], entry["key"])):
        alone = scored(entry["alone"], entry["alone_standard_error"])
        table.add_row(entry["key"], f"{entry['supernet']:.2%}", alone)
    stdout_console().print(table)
    click.echo(f"Kendall tau {tau['value']:.3f}, 95% interval {tau['low']:.3f} to {tau['high']:.3f}")


def print_insights(result: Mapping[str, Any]) -> None:
    """Print, for each kind of knob, the whole network's effects by training stage, and what they mean in words."""
    from rich.markup import escape
    from rich.table import Table

    from qnas.effects import NETWORK
    from qnas.insights_said import by_choice, difference_said, effect_said, sentence

    cost, stages, console = result["cost"], result["stages"], stdout_console()
    click.echo(
        f"{result['metric']} gained at equal {cost} from no knob with a choice to all of them: percentage points, 95% "
        "interval (bold: zero is outside)"
    )
    for kind, rows in by_choice(stages).items():
        whole = {choice: found for (place, choice), found in rows.items() if place == NETWORK}
        table = Table()
        table.add_column(escape(kind))
        for stage in stages:
            table.add_column(escape(stage["name"]), justify="right")
        for choice, found in whole.items():
            cells = [effect_said(p) for p in found]
            sure = [p is not None and p["resolved"] for p in found]
            table.add_row(
                escape(str(choice)), *(f"[bold]{c}[/bold]" if s else c for c, s in zip(cells, sure, strict=True))
            )
        console.print(table)
    for stage in stages:
        console.print(escape(sentence(stage, cost)))
    if result["difference"] is not None:
        console.print(escape(difference_said(result["difference"])))


def print_comparison(found: Mapping[str, Any]) -> None:
    """Print what each run reaches within each budget, and how many differences are significant."""
    from rich.markup import escape
    from rich.table import Table

    from qnas.report.formats import metric

    cost, score = found["cost"], found["metric"]
    title = f"Test {score} in % within a budget of {cost}: the point that is best on the search split, ± standard error"
    table = Table(title=title, title_justify="left")
    table.add_column("run", overflow="fold")
    limits = (f"<= {metric(cost, budget, score)}" for budget in found["budgets"])
    for name in ("image passes", "hypervolume, search", "hypervolume, test", *limits):
        table.add_column(name, justify="right")
    for run, offers in zip(found["runs"], found["at_budget"], strict=True):
        volumes = [run["hypervolume"][split] for split in ("search", "test")]
        table.add_row(
            escape(run["name"]),
            "-" if run["image_passes"] is None else f"{run['image_passes']:,.0f}",
            *("-" if volume is None else f"{volume:.3f}" for volume in volumes),
            *("-" if o["test"] is None else f"{100 * o['test']:.1f} ± {100 * o['test_error']:.1f}" for o in offers),
        )
    stdout_console().print(table)
    tested = [pair for pair in found["pairs"] if pair["paired"]]
    real = sum(pair["significant"] for pair in tested)
    unpaired = len(found["pairs"]) - len(tested)
    click.echo(
        f"Significant after Holm's correction: {real} of {len(tested)} paired tests"
        + (f"; {unpaired} not paired, since test images differ" if unpaired else "")
    )


def print_predictor(value: Mapping[str, Any]) -> None:
    """Print how well a predictor orders subnets that it was not fitted to."""
    score = value["score"]
    tau, ceiling = score["kendall_tau"], score["ceiling"]
    click.echo(
        f"Predictor {value['name']} of stage {value['stage']}: fitted to {value['fitted']} subnets, scored on "
        f"{value['held_out']} others"
    )
    click.echo(f"  Kendall tau  {tau['value']:.3f} (95% interval {tau['low']:.3f} to {tau['high']:.3f})")
    click.echo(f"  Pearson      {score['pearson']:.3f}")
    click.echo(f"  error        {100 * score['rmse']:.2f} points (root mean square)")
    click.echo(
        f"  noise        two halves of the images agree to tau {ceiling['kendall_tau']:.3f}, Pearson "
        f"{ceiling['pearson']:.3f}"
    )


def print_bits(run: Any, result: Mapping[str, Any], layers: Sequence[Any]) -> None:
    """Print a network whose bit-widths were set by hand."""
    from rich.table import Table

    metric = result["metric"]
    table = Table(title=f"Subnet {result['key']}, stage {result['stage']}", title_justify="left")
    table.add_column("layer")
    for name in ("weight bits", "activation bits", "MACs"):
        table.add_column(name, justify="right")
    for layer in layers:
        if layer.kind != "quantize":
            table.add_row(layer.name, str(layer.w_bits), str(layer.a_bits), f"{layer.macs:,}")
    stdout_console().print(table)
    for split, metrics in result["metrics"].items():
        click.echo(f"{metric}, {split} ({result['num_images'][split]} images): {metrics[metric]:.2%}")
    costs = result["metrics"]["test"]
    click.echo(f"bitops {int(costs['bitops']):,}, size_bytes {int(costs['size_bytes']):,}")
    if "export" in result:
        print_export(run, result["export"])
        print_verification(result["verify"])


def print_export(run: Any, result: Mapping[str, Any]) -> None:
    """Print what was exported, and what of it stays in float."""
    click.echo(f"Subnet {result['key']}:")
    click.echo(f"  ONNX        {run / result['onnx']} ({result['onnx_bytes']:,} bytes)")
    click.echo(f"  bit-packed  {run / result['packed']} ({result['packed_bytes']:,} bytes of payload)")
    operators = ", ".join(f"{count} {name}" for name, count in result["operators"].items())
    click.echo(f"  {result['device']} executes {operators}")
    islands = result["float_islands"]
    click.echo(f"  in float    {len(islands)} operations" if islands else "  in float    nothing")
    for island in islands:
        click.echo(f"              {island['name']} ({island['reason']})")


def print_features(run: Any, result: Mapping[str, Any]) -> None:
    """Print a backbone that was exported, and how its features compare with the subnet's."""
    click.echo(f"Features of subnet {result['key']}:")
    click.echo(f"  ONNX        {run / result['onnx']} ({result['onnx_bytes']:,} bytes)")
    for output in result["outputs"]:
        check, size = result["checks"][output["name"]], output["size"]
        steps = "in float" if check["largest_steps"] is None else f"{check['largest_steps']} steps at most"
        click.echo(
            f"  {output['name']:10}  {output['channels']} x {size} x {size}, {check['identical']:.2%} of the values as "
            f"the subnet's, {steps}"
        )
    word = "passed" if result["passed"] else "FAILED"
    click.echo(f"  {word} on {result['device']} {result['version']}, {result['num_images']} test images")


def print_detector(result: Mapping[str, Any]) -> None:
    """Print what a detector finds."""
    kind = "integer" if result["quantize"] else "float"
    click.echo(
        f"Detector {result['id']} on {result['data']}: backbone {result['key']} ({kind}), stage {result['stage']}"
    )
    maps = ", ".join(f"{f['channels']} x {f['size']} x {f['size']} (stride {f['stride']})" for f in result["features"])
    click.echo(f"  features    {maps}")
    for split, metrics in result["metrics"].items():
        shown = ", ".join(f"{name} {value:.2%}" for name, value in metrics.items())
        click.echo(f"  {split:10}  {shown} ({result['num_images'][split]} images)")


def print_verification(result: Mapping[str, Any]) -> None:
    """Print how an exported model compares with its subnet."""
    word = "passed" if result["passed"] else "FAILED"
    click.echo(
        f"Verification {word}: {result['key']} on {result['device']} {result['version']}, "
        f"{result['num_images']} test images: accuracy {result['device_accuracy']:.2%} "
        f"(subnet {result['subnet_accuracy']:.2%}), {result['agreement']:.2%} of predictions equal, "
        f"largest difference {_largest(result)}"
    )
    for failure in result["failures"]:
        click.echo(f"  {failure}")


def _largest(result: Mapping[str, Any]) -> str:
    steps = result["largest_steps"]
    return f"{result['largest_difference']:.2e}" if steps is None else f"{steps} output steps"
