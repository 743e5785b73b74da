"""Before anything of the tests is imported: torch must not load triton, which would complain about leaks after pytest's
last line. Nothing that is tested here is compiled.
"""

import os
import sys

sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
os.environ.pop("COLUMNS", None)  # test processes are given one, and lines would be broken there
