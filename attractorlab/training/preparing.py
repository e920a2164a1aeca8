"""What a training starts from: its network and its puzzles."""

import ctypes
import platform

import torch

from attractorlab import tasks
from attractorlab.models.checkpoints import load, load_feedforward
from attractorlab.models.eqr import EqR, EqRConfig
from attractorlab.models.feedforward import FeedForward
from attractorlab.tasks import generate
from attractorlab.training.config import TrainConfig
from attractorlab.types import Instance


def network(config: TrainConfig, sites: int, generator: torch.Generator) -> EqR | FeedForward:
    """The network to train, with fresh weights or those that the configuration begins with."""
    shape = config.shape(sites=sites, vocabulary=tasks.task_of(config.task).vocabulary)
    network = EqR(shape, generator=generator) if isinstance(shape, EqRConfig) else FeedForward(shape, generator=generator)
    if config.begin:
        other = load(config.begin) if isinstance(shape, EqRConfig) else load_feedforward(config.begin)
        ours, theirs = ({name: tuple(tensor.shape) for name, tensor in one.state_dict().items()} for one in (network, other))
        if ours != theirs:
            raise ValueError(
                f"`train` got begin={config.begin!r}, whose weights are not those of the configuration ({', '.join(sorted(dict(ours.items() ^ theirs.items()))[:4])}). "
                "A training is begun with weights of its own shape. Set width, blocks and mixer to those that `attractorlab inspect` shows."
            )
        network.load_state_dict(other.state_dict())
    return network


def keep_freed_memory() -> bool:
    """Let this process keep the memory that layers free, and say whether it does; it can with the GNU C library alone.

    By default that gives large blocks back to the system, which clears them again when the next segment asks for them: some 20,000 page faults in each.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # parameters of mallopt(3)
    library = ctypes.CDLL(None)
    return bool(library.mallopt(mmap_threshold, 2**25)) and bool(library.mallopt(trim_threshold, 2**31 - 1))  # the largest that it takes


def training_pool(config: TrainConfig) -> Instance:
    """The puzzles that `config` asks for, without those that have a symmetric twin among the bundled test and validation puzzles.

    The smallest boards, such as Sudoku of side 4, are the exception: up to symmetry they are so few that every pool holds the bundled ones, and no
    claim about unseen puzzles can be made there.

    Raises:
        ValueError: If no puzzle is left.
    """
    pool = tasks.load(config.task, path=config.data, split="train") if config.data else generate(config.task, config.puzzles, seed=config.seed)
    if not len(pool):
        raise ValueError(f"`train` found no puzzle in {config.data}. A training needs one or more. Give data=FILE with puzzles in it.")
    if not tasks.task_of(config.task).unseen:
        return pool
    seen = torch.zeros(len(pool), dtype=torch.bool)
    for split in ("test", "validation"):
        seen |= tasks.overlap(tasks.load(config.task, split=split), pool)
    if bool(seen.all()):
        raise ValueError(
            f"`train` found {len(pool)} puzzles, and a symmetric twin of each among the bundled test and validation puzzles. What is tested is not trained on. "
            "Give more puzzles, or others as data=FILE."
        )
    return pool[~seen]
