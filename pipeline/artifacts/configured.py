"""The settings files, read without Luigi: which there are, and the folder of artifacts that they name."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

from pipeline.specs import RunSpec
from pipeline.system.console import one_line
from pipeline.system.errors import UserError
from pipeline.system.files import with_home


def configured_artifacts() -> Path:
    """The folder that runs from here write to: [run] artifacts of luigi.cfg, or of the preset over it.

    Raises:
        UserError: as `read_settings`.
    """
    found = read_settings().get("run", "artifacts", fallback=RunSpec.artifacts)
    return Path(with_home(os.path.expandvars(found)))  # Luigi replaces ${NAME} too


def preset() -> str:
    """The file of settings that LUIGI_CONFIG_PATH names; "" if it names none.

    Raises:
        FileNotFoundError: it names a file that is not there; other settings would mean other artifacts.
    """
    path = os.environ.get("LUIGI_CONFIG_PATH", "")
    if path and not Path(path).is_file():
        raise FileNotFoundError(f"LUIGI_CONFIG_PATH is {path!r}, and there is no such file")
    return path


def read_settings() -> configparser.ConfigParser:
    """luigi.cfg of the current folder, if there is one, and the preset of LUIGI_CONFIG_PATH over it.

    Raises:
        OSError: as `preset`, or one of them may not be read.
        UserError: one of them has an error of syntax, or is not UTF-8.
    """
    parser = configparser.ConfigParser(interpolation=None)
    for path in filter(None, ("luigi.cfg", preset())):
        try:
            parser.read_string(Path(path).read_text(encoding="utf-8"), source=path)
        except FileNotFoundError:  # luigi.cfg: another folder than the project's has none
            continue
        except configparser.Error as error:
            raise UserError(f"{path} cannot be read: {one_line(str(error))}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error}") from None
    return parser
