"""IDRiD's grades in order; the data set is read by its entry of the catalogue."""

GRADES = ("No DR", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR")
