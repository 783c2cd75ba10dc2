"""The parameters that nearly all tasks have, and the settings that follow from them."""

from __future__ import annotations

import luigi

from pipeline.specs import RunSpec
from pipeline.specs.base import Spec
from tasks import checks, settings
from tasks.session import OfProgram, cached_in_scope


class OfDataset(OfProgram):
    """A task for one dataset and split."""

    dataset = luigi.Parameter(default="", description="section [dataset.NAME] of luigi.cfg; default: [run] dataset")
    split = luigi.Parameter(default="", description="split number or name of the test group; default: the dataset's")
    seed = luigi.IntParameter(default=-1, description="seed of the training; default: [run] seed")
    artifacts = luigi.Parameter(default="", description="folder of everything that is made; default: [run] artifacts")
    # not significant: the device does not change the name of the result
    device = luigi.Parameter(
        default="", significant=False, description="auto, cpu, cuda or cuda:N; default: [run] device"
    )
    changes = luigi.DictParameter(
        default={}, description='settings that this task changes, as JSON, such as {"stack_length": "5"}'
    )

    @cached_in_scope
    def run_spec(self) -> RunSpec:
        """The [run] settings, overridden by the parameters of this task."""
        given = {"dataset": self.dataset, "device": self.device, "artifacts": self.artifacts, "seed": self.seed}
        return settings.resolve("run", **{name: value for name, value in given.items() if value not in ("", -1)})

    @cached_in_scope
    def dataset_name(self) -> str:
        """Name of the dataset, which must have a section in luigi.cfg."""
        checks.check_dataset(self.run_spec.dataset)
        return self.run_spec.dataset

    def spec(self, section: str) -> Spec:
        """The settings of a section for this dataset."""
        return settings.resolve(section, self.dataset_name, self.changes)

    @cached_in_scope
    def split_name(self) -> str:
        """Name of the split; the dataset's own if none was given."""
        return self.named_split(self.split or self.spec("dataset").split)

    def named_split(self, name: str) -> str:
        """The canonical name of a split: splits of official lists are numbers, so 01 becomes 1."""
        official = settings.has_official_splits(self.dataset_name)
        return str(int(name)) if official and name.isdecimal() else name


class Whole(OfDataset, luigi.WrapperTask):
    """A task that only requires stages."""
