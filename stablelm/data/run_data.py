"""What a run reads, opened: the data, and the order of their samples that its configuration asks for."""

from pathlib import Path
from typing import Any, Protocol

from stablelm.config import InputError, RunConfig
from stablelm.config.mixture import NO_PATHS
from stablelm.data.loader import Loader
from stablelm.data.manifest import Dataset
from stablelm.data.neox_files import NeoxFiles
from stablelm.data.neox_order import NeoxLoader
from stablelm.data.replay import with_replay
from stablelm.data.samples import Samples
from stablelm.data.token_files import TokenFile
from stablelm.tokenizer import Tokenizer

INDEX_FOLDER = "neox-order"


class TrainingData(Protocol):
    """What a run needs of its data beside the samples; a `Dataset`, or the token files of a NeoX run."""

    tokenizer_path: Path
    tokenizer_size: int
    sources: tuple[str, ...]

    def held_out(self, source: str) -> TokenFile | None:
        """The held-out documents of a source, or None when there are none."""
        ...

    def text_bytes(self, source: str, side: str = "train") -> int:
        """UTF-8 bytes of the text of `train` or `held_out`."""
        ...

    def open_tokenizer(self) -> Tokenizer:
        """Text to the ids of the token files."""
        ...

    def tokenizer_files(self) -> dict[str, bytes]:
        """What a checkpoint keeps of the tokenizer: files by name."""
        ...

    def summary(self) -> dict[str, Any]:
        """What a checkpoint and a model card carry of the data."""
        ...

    def summary_json(self) -> str:
        """`summary` as JSON text."""
        ...


def open_data(config: RunConfig) -> tuple[TrainingData, Samples]:
    """The data of a run and its samples; `InputError` where they do not fit the configuration.

    `order: neox` makes its index, once, in a folder inside the run's directory."""
    length, sequences = config.batch.sequence_length, config.batch.sequences
    if config.data.order == "neox":
        assert config.data.neox is not None
        if NO_PATHS in config.data.neox.paths:
            raise InputError(
                "train-data-paths is empty, so there is nothing to train on. Name the prefixes of the run's "
                ".bin and .idx files there, or read prepared data: --set data.path=data/prepared "
                "--set 'data.epochs={web: 4}'."
            )
        files = NeoxFiles(config.data.neox)
        cache = Path(config.out) / INDEX_FOLDER
        return files, NeoxLoader(files, config.data, length, config.seed, sequences, cache)
    if config.data.replay is not None:
        joined, data = with_replay(config)
        return joined, Loader(joined, data, length, config.seed, sequences)
    dataset = Dataset(config.data.path)
    return dataset, Loader(dataset, config.data, length, config.seed, sequences)
