"""Print what setup.cfg asks for, each at its lower bound, as requirements for pip: `torch>=2.6` as `torch==2.6`.

The bounds stand in setup.cfg alone; `make test-lower` installs what this prints. (To pip, `==2.6` is 2.6.0.)
"""

from configparser import ConfigParser
from pathlib import Path

config = ConfigParser()
config.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
requirements = config["options"]["install_requires"] + config["options.extras_require"]["test"]
for requirement in requirements.split("\n"):
    if requirement:
        name, bound, versions = requirement.partition(">=")
        if not bound:
            raise SystemExit(f"setup.cfg: {requirement} has no lower bound")
        print(f"{name}=={versions}")
