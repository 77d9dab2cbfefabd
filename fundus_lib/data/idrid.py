"""IDRiD's two scales, in order; the data set is read by its entry of the catalogue."""

GRADES = ("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR")
DME_RISKS = ("No DME", "DME (mild risk)", "DME (severe risk)")
