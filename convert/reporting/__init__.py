"""What a conversion cost: errors of matrices, distance of answers, as JSON and as a page."""
