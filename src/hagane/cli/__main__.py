"""`python -m hagane.cli`."""

from hagane.cli import main

raise SystemExit(main())
