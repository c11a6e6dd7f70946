package verify

import "fmt"

// Heading is a metric's name for people; of a name that no metric has, the name.
func Heading(metric string) string {
	if row := (Limit{Metric: metric}).row(); row.get != nil {
		return row.heading
	}
	if metric == finiteMetric {
		return "elements that are not finite"
	}
	return metric
}

// Format writes a value of a metric as reports do: "1.20e-06", "0.998".
func Format(metric string, x float64) string {
	row := (Limit{Metric: metric}).row()
	if row.get == nil {
		return fmt.Sprintf("%g", x)
	}
	return fmt.Sprintf(row.format, x)
}
