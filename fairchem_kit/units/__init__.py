"""Units of data and of tables: conversion, and the columns of the literature's tables."""
