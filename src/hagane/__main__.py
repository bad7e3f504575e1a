"""`python -m hagane` is the same as `hagane`."""

from hagane.cli import main

raise SystemExit(main())
