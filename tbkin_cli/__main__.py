"""`python -m tbkin_cli`."""

from tbkin_cli.main import main

main()
