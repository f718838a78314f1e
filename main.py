from fetcher.__main__ import main

raise SystemExit(main())
