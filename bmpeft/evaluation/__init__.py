"""Evaluation: metrics with intervals, controls, score cards.

    card = bmpeft.evaluation.run.evaluate(backbone, model, task=task, dataset=dataset, ...)
    print(bmpeft.evaluation.score_card.to_markdown(card))

`command` holds what `bmpeft eval` calls.
"""
