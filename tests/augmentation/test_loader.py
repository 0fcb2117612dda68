import multiprocessing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.augmentation.loader import PatchSampler, Position, batches
from autoseg.augmentation.on_device import finish
from autoseg.common.errors import RunError
from autoseg.image.image import read_image, read_label
from autoseg.plan.augmentation import Sampling
from autoseg.preprocessing.store import CaseStore
from tests.making import store_case, tiny_plan, tiny_store

HIPPOCAMPUS = Path(__file__).parents[1] / "data" / "Task004_Hippocampus"
AUGMENTATION = [
    {
        "transform": "spatial",
        "rotation_probability": 0.5,
        "scaling_probability": 0.5,
        "elastic_probability": 0.5,
    },
    {"transform": "gaussian_noise", "probability": 0.5},
    {"transform": "gaussian_blur", "probability": 0.5},
    {"transform": "brightness", "probability": 0.5},
    {"transform": "contrast", "probability": 0.5},
    {"transform": "low_resolution", "probability": 0.5},
    {"transform": "gamma", "probability": 0.5},
    {"transform": "mirror"},
]
STEPS = 3
pytestmark = pytest.mark.timeout(200)


def start(epoch=0, batch=0):
    return Position(seed=1, fold=2, epoch=epoch, batch=batch, place=0)


def make(folder, **changes):
    plan = tiny_plan(augmentation=AUGMENTATION, **changes)
    names = [f"case_{number}" for number in range(3)]
    return plan, PatchSampler(tiny_store(folder, plan, 3), names, plan.sampling, STEPS)


def take(plan, sampler, count, workers=0, first=None, places=None, on_device=False):
    first = first or start()
    if on_device:
        training = plan.training.model_copy(update={"augment_on": "device"})
        plan = plan.model_copy(update={"training": training})
    with batches(sampler, plan, first, workers, places) as stream:
        return list(islice(stream, count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["data"].tobytes() == other["data"].tobytes()
        assert one["label"].tobytes() == other["label"].tobytes()


@pytest.fixture(scope="module")
def hippocampus(tmp_path_factory):
    """Four real cases, larger and smaller than a patch of 40 x 48 x 32 voxels."""
    sampling = {"patch_size": [40, 48, 32], "batch_size": 3}
    plan = tiny_plan(augmentation=AUGMENTATION, sampling=sampling, inference={"overlap": [0, 0, 0]})
    store = CaseStore(tmp_path_factory.mktemp("real cases é"), plan.preprocessing_id)
    names = ["hippocampus_003", "hippocampus_008", "hippocampus_017", "hippocampus_023"]
    for name in names:
        array = read_image([HIPPOCAMPUS / "imagesTr" / f"{name}.nii.gz"]).array
        label, _ = read_label(HIPPOCAMPUS / "labelsTr" / f"{name}.nii.gz")
        store_case(store, name, (array - array.mean()) / array.std(), label)
    sampler = PatchSampler(store, names, plan.sampling, STEPS)
    return plan, sampler, take(plan, sampler, 8)


def test_batches_have_shape_and_type(tmp_path):
    plan, sampler = make(tmp_path)
    for batch in take(plan, sampler, 2 * STEPS):
        assert batch["data"].shape == (2, 1, 8, 8, 8)
        assert batch["label"].shape == (2, 8, 8, 8)
        assert batch["data"].dtype == np.float32
        assert batch["label"].dtype == np.int16


@pytest.mark.parametrize("workers", [1, 5])
def test_real_batches_do_not_depend_on_the_number_of_workers(hippocampus, workers):
    plan, sampler, expected = hippocampus
    assert len({batch["data"].tobytes() for batch in expected}) == len(expected)
    assert_same(take(plan, sampler, len(expected), workers), expected)
    assert not multiprocessing.active_children()


def finished(found):
    """Batches whose images were left to the device, as other batches."""
    images = [finish(batch["postponed"], torch.device("cpu")).numpy() for batch in found]
    return [{"data": i, "label": b["label"]} for i, b in zip(images, found, strict=True)]


def test_images_left_to_the_device_do_not_depend_on_the_number_of_workers(hippocampus):
    plan, sampler, _ = hippocampus
    expected = finished(take(plan, sampler, 4, on_device=True))
    assert expected[0]["data"].shape == (3, 1, 40, 48, 32)
    assert expected[0]["data"].tobytes() != expected[1]["data"].tobytes()
    assert_same(finished(take(plan, sampler, 4, workers=2, on_device=True)), expected)
    later = finished(take(plan, sampler, 1, first=start(batch=2), on_device=True))
    assert_same(later, expected[2:3])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_within_an_epoch_continues_the_stream(hippocampus, workers):
    plan, sampler, whole = hippocampus
    found = take(plan, sampler, 4, workers, start(epoch=1, batch=1))
    assert_same(found, whole[STEPS + 1 :])


def test_every_start_continues_the_stream(tmp_path):
    plan, sampler = make(tmp_path)
    whole = take(plan, sampler, 4 * STEPS)
    for number in range(3 * STEPS):
        epoch, batch = divmod(number, STEPS)
        assert_same(take(plan, sampler, STEPS, 0, start(epoch, batch)), whole[number:][:STEPS])


@pytest.mark.parametrize("places", [range(0, 1), range(1, 3), range(2, 3)])
def test_some_places_equal_those_of_the_whole_batch(hippocampus, places):
    plan, sampler, whole = hippocampus
    some = [{key: values[places.start : places.stop] for key, values in b.items()} for b in whole]
    assert_same(take(plan, sampler, 3, places=places), some[:3])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [False, True])
def test_validation_batches_follow_those_of_training(tmp_path, workers, augment):
    training = {"augment_validation": augment}
    plan, sampler = make(tmp_path, training=training)
    checked = PatchSampler(sampler.store, sampler.cases[:2], plan.sampling, 2)
    first = start(epoch=1, batch=STEPS - 1)
    with batches(sampler, plan, first, workers, range(1), checked) as stream:
        found = list(islice(stream, 1 + 2 + STEPS + 2))
    expected = take(plan, sampler, 1 + STEPS, first=first, places=range(1))
    assert_same([found[0], *found[3:-2]], expected)
    bare = tiny_plan(training=training, augmentation=AUGMENTATION if augment else [])
    for epoch, own in ((1, found[1:3]), (2, found[-2:])):  # equal patches, unless augmented
        at = Position(first.seed, 1_000_000 + first.fold, epoch if augment else 0, 0, 0)
        assert_same(own, take(bare, checked, 2, first=at))


def test_two_streams_at_once_do_not_disturb_each_other(tmp_path):
    plan, sampler = make(tmp_path)
    expected = take(plan, sampler, 4)
    with (
        batches(sampler, plan, start(), 0) as one,
        batches(sampler, plan, start(), 0) as other,
    ):
        found = [(next(one), next(other)) for _ in range(4)]
    assert_same([pair[0] for pair in found], expected)
    assert_same([pair[1] for pair in found], expected)


def test_fold_and_seed_make_other_batches(tmp_path):
    plan, sampler = make(tmp_path)
    drawn = {
        take(plan, sampler, 1, first=Position(seed, fold, 0, 0, 0))[0]["data"].tobytes()
        for seed, fold in ((1, 0), (1, 1), (2, 0))
    }
    assert len(drawn) == 3


def stored(folder, names, size):
    """Cases of random whole numbers, which blosc2 can compress: it notices some damage then."""
    store = CaseStore(folder, "id")
    for seed, name in enumerate(names):
        values = np.random.default_rng(seed).integers(0, 3, (size, size, size))
        store_case(store, name, values[None], values)
    return store


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_is_named_after_all_batches_before_it(tmp_path, capfd, workers):
    names = ["case_0", "case_1", "case_2"]
    store = stored(tmp_path, names, size=40)
    path = tmp_path / "case_1" / "image.b2nd"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(400) + content[half + 400 :])
    sampling = Sampling(patch_size=(40, 40, 40), batch_size=1)
    sampler = PatchSampler(store, names, sampling, STEPS)
    order = [sampler.name_at(start(batch=batch)) for batch in range(STEPS)]
    with batches(sampler, tiny_plan(augmentation=[]), start(), workers) as stream:
        for _ in range(order.index("case_1")):
            next(stream)
        with pytest.raises(RunError) as caught:
            next(stream)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'case_1'} is damaged")
    assert "\n" not in message
    assert "Traceback" in caught.value.__notes__[0]
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


class Broken(PatchSampler):
    def draw(self, at, size, border="constant"):
        raise (MemoryError if at.place else KeyError)("oops")


def test_an_unexpected_error_names_its_batch(tmp_path):
    plan, sampler = make(tmp_path)
    broken = Broken(sampler.store, sampler.cases, plan.sampling, STEPS)
    with pytest.raises(RunError, match=r"epoch 2, batch 3: 'oops' \(KeyError"):
        take(plan, broken, 1, first=start(epoch=1, batch=2))
    with pytest.raises(RunError, match=r"memory .* epoch 1, batch 1; .*--processes"):
        take(plan, broken, 1, places=range(1, 2))
