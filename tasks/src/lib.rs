//! outerloop: tasks
