"""The files under include/: found, read, handed to the core as text."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from nim_rollouts.core.cost import PriceTable, load_prices
from nim_rollouts.core.errors import ManifestError, SpecError, UnknownDeployment, UnknownEnvironment
from nim_rollouts.core.spec import Deployment, Environment, load_deployment, load_environment

INCLUDE_VARIABLE = "NIM_ROLLOUTS_INCLUDE"


class Include:
    """The include folder: `root`, else the environment variable NIM_ROLLOUTS_INCLUDE, else beside plugins/."""

    def __init__(self, root: Path | str | None = None) -> None:
        chosen = root or os.environ.get(INCLUDE_VARIABLE)
        self.root = Path(chosen) if chosen else Path(__file__).resolve().parents[3] / "include"

    @property
    def repository(self) -> Path:
        """What a local chart's path is relative to."""
        return self.root.parent

    def path(self, relative: str) -> Path:
        """A file or folder of include/."""
        return self.root / relative

    def deployments(self) -> list[str]:
        """Names of all deployments."""
        return self._names("deployments")

    def environments(self) -> list[str]:
        """Names of all environments."""
        return self._names("environments")

    def deployment(self, name: str) -> Deployment:
        """The deployment of that name.

        :raises UnknownDeployment: no such file
        :raises SpecError: the file cannot be accepted, with file and line
        """
        return load_deployment(
            name, self._text("deployments", name, UnknownDeployment), f"include/deployments/{name}.yaml"
        )

    def environment(self, name: str) -> Environment:
        """The environment of that name.

        :raises UnknownEnvironment: no such file
        :raises SpecError: the file cannot be accepted, with file and line
        """
        text = self._text("environments", name, UnknownEnvironment)
        return load_environment(name, text, f"include/environments/{name}.yaml", self.node_pools())

    def prices(self, region: str) -> PriceTable | None:
        """The region's price table; None where there is none.

        :raises SpecError: the file cannot be accepted, with file and line
        """
        if region not in self._names("prices"):
            return None
        relative = f"prices/{region}.yaml"
        return load_prices(self.path(relative).read_text(), f"include/{relative}", region)

    def templates(self) -> dict[str, str]:
        """The manifests, path below include/manifests -> text."""
        folder = self.root / "manifests"
        return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.yaml"))}

    def node_pools(self) -> list[str]:
        """Names of all node pools that an environment can have."""
        return self._names("manifests/node-pools")

    def benchmark_files(self) -> dict[str, bytes]:
        """What the benchmark's pod needs: the program and the tokenizer, path below include/benchmarks -> content."""
        folder = self.root / "benchmarks"
        program = folder / "run.py"
        if not program.is_file():
            raise ManifestError("include/benchmarks/run.py is missing")
        tokenizer = sorted(path for path in (folder / "tokenizer").glob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in (program, *tokenizer)}

    def _names(self, folder: str) -> list[str]:
        return sorted(path.stem for path in (self.root / folder).glob("*.yaml"))

    def _text(self, folder: str, name: str, unknown: type[SpecError]) -> str:
        # The name comes from a form: it is compared with what is there, never made into a path unseen.
        known = self._names(folder)
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            known_text = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known) or 'none'}"
            raise unknown(
                f'include/{folder} has no "{name}"; {known_text}',
                hint=f"Choose one that exists, or add include/{folder}/<name>.yaml",
            )
        try:
            return (self.root / folder / f"{name}.yaml").read_text()
        except UnicodeDecodeError:
            raise SpecError(f"include/{folder}/{name}.yaml:1: not UTF-8 text", reason="yaml-malformed") from None
