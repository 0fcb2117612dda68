"""Time `autoseg_predict` from start to end against other programs on the same scans.

Hippocampus against nnU-Net, which is installed in a virtual environment of its own. Both plan for
the same task and segment the same cases with one fold, by turns; the row has the median round:

    python scripts/bench_predict.py tests/data/Task004_Hippocampus --nnunet /path/to/venv

Both networks are untrained, because the weights do not affect the time; `--model` uses a trained
model of autoseg instead. A CT of 512 x 512 x 301 voxels and the paper's plan, against the
same network and tiles in plain torch (float32) with scikit-image's resampling:

    python scripts/bench_predict.py --ct
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_backend import paper_plan
from nnunet_plans import plan_of_task
from plain_prediction import write_ct
from side_by_side import (
    Command,
    NnUNet,
    bench_parser,
    by_turns,
    link,
    nnunet_with,
    print_head,
    print_machine,
    print_row,
    run,
    warm_up,
)

from autoseg.dataset.task import Task, read_task
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.folder import FINAL
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan, load_plan

PLAIN = Path(__file__).with_name("plain_prediction.py")
UNTRAINED = """
import sys, torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
plans, channels, labels, out = sys.argv[1:]
found = PlansManager(plans).get_configuration("3d_fullres")
network = get_network_from_plans(
    found.network_arch_class_name, found.network_arch_init_kwargs,
    found.network_arch_init_kwargs_req_import, int(channels), int(labels), deep_supervision=False,
)
torch.save({
    "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer",
    "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": (0, 1, 2),
}, out)
"""


def save_untrained(plan: Plan, folder: Path) -> Path:
    """A model folder with untrained weights."""
    torch.manual_seed(0)
    plan.save(folder / "plan.json")
    weights = dict(build_network(plan).state_dict())
    save_checkpoint(folder / "fold_0" / FINAL, weights, {"plan_id": plan.id})
    return folder


def plan_untrained(task: Task, workspace: Path, budget: str | None) -> Path:
    """What `autoseg_plan` plans, with untrained weights."""
    words = [str(task.folder), "--workspace", str(workspace), "--device", "cpu"]
    budgeted = ["--time-budget", budget] if budget else []
    run([sys.executable, "-m", "autoseg.cli.plan", *words, *budgeted], {})
    plan = load_plan(workspace / "preprocessed" / task.name / "default" / "plan.json")
    print(f"(autoseg: {describe(plan)})")
    return save_untrained(plan, workspace / "model")


def describe(plan: Plan) -> str:
    """Patch and network of a plan, as text."""
    patch = " x ".join(map(str, plan.sampling.patch_size))
    return f"patches of {patch}, {'-'.join(map(str, plan.network.features))} maps"


def predict_autoseg(model: Path, scans: Path, *options: str) -> Command:
    """`autoseg_predict` as a command."""
    words = [sys.executable, "-m", "autoseg.cli.predict", "-i", str(scans), "-m", str(model)]
    return lambda out: run([*words, "-o", str(out), "--device", "cpu", *options], {})


def predict_nnunet(nnunet: NnUNet, scans: Path, *options: str) -> Command:
    """`nnUNetv2_predict -f 0` as a command."""
    words = ("-c", "3d_fullres", "-f", "0", "-device", "cpu", "-i", str(scans), *options)
    return lambda out: nnunet.run("nnUNetv2_predict", *words, "-o", str(out))


def plan_nnunet(nnunet: NnUNet, task: Task) -> None:
    """Its own fingerprint and plan, and a checkpoint with untrained weights."""
    plan_of_task(nnunet)
    trained = (
        nnunet.root / "results" / "Dataset001_Bench" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    )
    link(nnunet.root / "raw" / "Dataset001_Bench" / "dataset.json", trained / "dataset.json")
    link(nnunet.preprocessed / "nnUNetPlans.json", trained / "plans.json")
    checkpoint = trained / "fold_0" / "checkpoint_final.pth"
    checkpoint.parent.mkdir()
    sizes = (str(len(task.channels)), str(len(task.labels)))
    python = str(nnunet.environment / "bin" / "python")
    run([python, "-c", UNTRAINED, str(trained / "plans.json"), *sizes, str(checkpoint)], {})


def link_scans(task: Task, count: int, folder: Path) -> Path:
    """The scans of the first cases, named as both commands require."""
    for case in task.cases[:count]:
        for channel, image in enumerate(case.images):
            link(image.resolve(), folder / f"{case.name}_{channel:04d}.nii.gz")
    return folder


def bench_task(arguments: argparse.Namespace) -> None:
    """The Hippocampus set, or another task."""
    task = read_task(arguments.task)
    with TemporaryDirectory() as folder, nnunet_with(task, arguments.nnunet) as nnunet:
        scans = link_scans(task, arguments.cases, Path(folder) / "in")
        model = arguments.model or plan_untrained(task, Path(folder), arguments.time_budget)
        plan_nnunet(nnunet, task)
        files = len(list(scans.iterdir()))
        warm_up(task)
        commands = {
            "autoseg": predict_autoseg(model, scans),
            "nnU-Net": predict_nnunet(nnunet, scans, "--disable_tta"),
        }
        if arguments.mirror:
            commands["autoseg --tta"] = predict_autoseg(model, scans, "--tta")
            commands["nnU-Net mirrored"] = predict_nnunet(nnunet, scans)
        costs = by_turns(commands, arguments.rounds)
    what = f"predict {files} scans of {task.name}, command start to end"
    print_head()
    print_row(what, costs["autoseg"], "nnU-Net without mirroring", costs["nnU-Net"])
    if arguments.mirror:
        pair = costs["autoseg --tta"], costs["nnU-Net mirrored"]
        print_row(f"{what}, mirrored", pair[0], "nnU-Net", pair[1])
    print_machine()


def bench_ct(arguments: argparse.Namespace) -> None:
    """One CT and the paper's plan."""
    with TemporaryDirectory() as folder:
        model = save_untrained(paper_plan(), Path(folder) / "model")
        scan = Path(folder) / "in" / "ct.nii.gz"
        write_ct(scan, tuple(arguments.size))
        plain = [sys.executable, str(PLAIN), str(model), str(scan)]
        commands: dict[str, Command] = {
            "autoseg": predict_autoseg(model, scan),
            "torch": predict_autoseg(model, scan, "--backend", "torch"),
            "plain": lambda out: run([*plain, str(out / "ct.nii.gz")], {}),
        }
        costs = by_turns(commands, arguments.rounds)
    other = "plain torch float32 and scikit-image"
    what = f"predict a CT of {' x '.join(map(str, arguments.size))}, {describe(paper_plan())}"
    print_head()
    print_row(what, costs["autoseg"], other, costs["plain"])
    print_row(f"{what}, --backend torch", costs["torch"], other, costs["plain"])
    print_machine()


def main() -> None:
    """The command line."""
    parser = bench_parser(__doc__, rounds=3)
    parser.add_argument("task", type=Path, nargs="?", help="a raw task's folder")
    parser.add_argument("--cases", type=int, default=12, help="number of cases to predict")
    parser.add_argument("--model", type=Path, help="a trained model of the task")
    parser.add_argument("--time-budget", help="plan for training of this length, such as 5m")
    parser.add_argument("--mirror", action="store_true", help="also compare with mirroring")
    parser.add_argument("--ct", action="store_true", help="one CT and the paper's plan instead")
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 301), help="of the CT")
    arguments = parser.parse_args()
    if arguments.ct:
        bench_ct(arguments)
    elif arguments.task and arguments.nnunet:
        bench_task(arguments)
    else:
        parser.error("give a task and --nnunet, or --ct")


if __name__ == "__main__":
    main()
