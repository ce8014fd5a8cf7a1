"""What people look at: progress, curves and pictures of a run, results pages, figures.

One interface, `training_log.TrainingLog`, with three back ends (console and files, visdom, HTML page), none of which
can stop a training; `case_page` and `cohort_page` for results; `figures` for papers.
"""
