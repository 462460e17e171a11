"""How long a test waits for what must come.

No judgement of speed: a machine that is busy with other work makes everything late, and breaks no promise. How fast
things are is measured by `make drills`, `make bench` and `make load`.
"""

from typing import Final

# Seconds. Only a test that fails waits so long.
PATIENCE_S: Final = 120.0
