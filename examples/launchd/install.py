"""Serve a model from login on, with the Python that runs this: `python examples/launchd/install.py`.

The model is the one that `mlx-qwenvl use` chose. Other options of `mlx-qwenvl serve` may be written
into the plist beside this file before.
"""  # noqa: E501

import os
import plistlib
import subprocess
import sys
from pathlib import Path

PLIST = Path(__file__).parent / "org.mlx-qwenvl.server.plist"

program = Path(sys.executable).with_name("mlx-qwenvl")
if not program.exists():
    sys.exit(f"{program} is missing; install mlx-qwenvl for {sys.executable} first")
log = Path.home() / "Library" / "Logs" / "mlx-qwenvl.log"
agent = Path.home() / "Library" / "LaunchAgents" / PLIST.name
log.parent.mkdir(parents=True, exist_ok=True)
agent.parent.mkdir(parents=True, exist_ok=True)

settings = plistlib.loads(PLIST.read_bytes())
settings["ProgramArguments"][0] = str(program)
settings["StandardOutPath"] = settings["StandardErrorPath"] = str(log)
agent.write_bytes(plistlib.dumps(settings))

domain = f"gui/{os.getuid()}"
# One that runs already goes first; where none does, launchctl says so, which is no news.
subprocess.run(["launchctl", "bootout", f"{domain}/{settings['Label']}"], stderr=subprocess.DEVNULL)
done = subprocess.run(["launchctl", "bootstrap", domain, str(agent)])
if done.returncode:
    sys.exit(f"launchctl took {agent} not, see above")
print(f"{' '.join(settings['ProgramArguments'])} runs from now on, and from every login on.")
print(f"Its log: {log}\nTo undo: launchctl bootout {domain}/{settings['Label']}; rm {agent}")
