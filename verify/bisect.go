package verify

// Bisection says which blocks have to be left as they are for the rest to pass a gate.
type Bisection struct {
	Blocks     []string `json:"blocks"`      // those of the configuration
	LeaveAlone []string `json:"leave_alone"` // the smallest set that was found; empty when all may be rewritten
	Passed     bool     `json:"passed"`      // false when not even one block can be rewritten
	// Smallest says that every smaller set was tried or is ruled out by one that was.
	Smallest bool    `json:"smallest"`
	Trials   []Trial `json:"trials"`
}

// Trial is one rewrite of some of the blocks, held against the original.
type Trial struct {
	LeftAlone []string           `json:"left_alone"`
	Passed    bool               `json:"passed"`
	Metrics   map[string]float64 `json:"metrics"` // the worst of each limited metric
	Excess    float64            `json:"excess"`  // how far beyond its limits: the largest ratio, 0 when passed
}
