"""Images: from a data set's files to the pixels that student and teacher see."""
