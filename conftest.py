"""Before anything of the tests is imported: torch must not load triton, which would complain about leaks after pytest's
last line. Nothing that is tested here is compiled.
"""

import sys

sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
