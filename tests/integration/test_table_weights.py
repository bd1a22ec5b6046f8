"""A run whose weights are on a table of levels ends with its front and report, and says why nothing is exported."""

from __future__ import annotations

import json

from click.testing import CliRunner

from qnas.cli import cli

FLAGS = (
    *(
        "--space",
        "resnet20",
        "--space-option",
        "elastic=false",
        "--space-option",
        "width=0.25",
        "--quantizer",
        "dorefa",
    ),
    *("--w-bits", "2,4", "--a-bits", "2,4", "--bits-granularity", "network", "--set", "quantization.bn=w_bits"),
    *("--sampler", "every-bits", "--set", "train.num_subnets=2", "--supervision", "recursive-distillation"),
    *("--float-epochs", "0", "--epochs", "1", "--batch-size", "256", "--strategy", "random", "--evaluations", "2"),
    *("--threads", "1", "--device", "cpu", "-q"),
)


def test_the_run_ends_with_its_report(tmp_path):
    path = tmp_path / "run"
    done = CliRunner().invoke(cli, ["run", *FLAGS, "--out", str(path), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Not exported: The weights of 'stage1.block1.conv1' are on a table of levels" in done.stderr
    found = json.loads(done.stdout)
    assert "table of levels" in found["export_error"]
    assert "export" not in found
    assert found["front"]["points"]
    assert (path / "report.html").is_file()
    assert not (path / "exports").exists()
