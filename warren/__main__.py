from warren.cli import main

raise SystemExit(main())
