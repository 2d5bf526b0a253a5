"""The predictor, answers about studies, engines and exports."""
